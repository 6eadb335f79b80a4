"""The benchmark report: what was measured, as one object, its tables, its plots and its pages. Measures nothing itself."""
