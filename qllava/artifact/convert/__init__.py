"""Artifacts in other programs' layouts."""
