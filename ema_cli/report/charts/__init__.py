"""The charts of the report page, as SVG text: numbers in, markup out.

Each chart is one element of bounded size with a sentence of its content for screen readers. Colors, fonts and dashes
come from ``charts.css``, which the page includes. Charts that are wide are drawn twice, for a wide and for a narrow
column; the style sheet shows the one that fits.
"""
