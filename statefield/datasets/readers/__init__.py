"""Readers and writers of file formats: one module a format."""
