"""`statefield routes`: the list and the drawing."""

from statefield.cli.main import main
from statefield.kernels.routes import ROUTES


def test_the_list_names_every_route_with_its_summary(capsys):
    assert main(["routes"]) == 0
    shown = capsys.readouterr().out
    for name, entry in ROUTES.items():
        assert entry.summary and any(
            line.split()[0] == name and line.endswith(entry.summary) for line in shown.splitlines() if line
        )


def test_a_drawing_shows_the_step_of_each_visit(capsys):
    assert main(["routes", "snake", "--shape", "3", "4"]) == 0
    assert capsys.readouterr().out == " 0  1  2  3\n 7  6  5  4\n 8  9 10 11\n"


def test_a_volume_is_drawn_slice_by_slice(capsys):
    assert main(["routes", "raster~", "--shape", "2", "2", "2"]) == 0
    assert capsys.readouterr().out == "7 6\n5 4\n\n3 2\n1 0\n"


def test_an_unknown_route_is_a_paragraph_and_status_2(capsys):
    assert main(["routes", "sneak"]) == 2
    assert "did you mean 'snake'" in capsys.readouterr().err
