"""The acceptance report: one page, and the same as JSON, that a quality engineer can sign.

data.py       what the report is made of: frozen, no files, no model
gather.py     the same out of a training run, pictures with their heat maps among it
curves.py     the numbers behind the charts, with intervals
tables.py     the numbers in tables: decisions with exact bounds, groups, sides of the split
words.py      the verdict and the limits, in words
charts.py     arrays -> SVG; the only file that imports matplotlib
page.py       all of it -> index.html and report.json
"""
