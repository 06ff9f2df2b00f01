"""What people read about finished runs: tables, statistics, curves, galleries, and a page that holds them all."""
