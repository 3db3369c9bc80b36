"""The report as one HTML file that needs nothing but a browser: pure functions from values to text."""
