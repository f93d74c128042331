"""Many jobs of one kind, done once each: in this process, on the cores of a machine, or on a cluster.

    from statefield.tasks.common.archive import Pool, run_archive

    result = run_archive(work, jobs, Path("predictions"), pool=Pool(workers=4))

A field supplies the jobs, and the `Work` that does one. The folder of outputs holds a ledger, so that a run that was
killed goes on where it was, and nothing is done twice or lost (docs/scale.md).
"""

from statefield.tasks.common.archive.jobs import Job, Pool, Work
from statefield.tasks.common.archive.ledger import Ledger, Record
from statefield.tasks.common.archive.run import ArchiveResult, run_archive

__all__ = ["ArchiveResult", "Job", "Ledger", "Pool", "Record", "Work", "run_archive"]
