"""The C++ kernels and the loader of the library they are built into."""
