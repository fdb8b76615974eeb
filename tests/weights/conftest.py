"""Scripts for another Python are no tests."""

collect_ignore = ["run_timm.py"]
