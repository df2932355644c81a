"""The sections of scripts/benchmark.py, a file a section; `common.py`: what they share."""
