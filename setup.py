"""Shim for tools that still call setup.py; pyproject.toml is the source of everything."""

from setuptools import setup

setup()
