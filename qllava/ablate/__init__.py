"""Studies: runs that differ in one thing, over seeds, and the table and chart of how they came out."""
