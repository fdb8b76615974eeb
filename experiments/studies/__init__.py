"""Studies: one file for each claim, which measures and writes tables, pictures and conditions.

What the figures mean is written by hand in ``docs/studies/NAME/report.md``.
"""
