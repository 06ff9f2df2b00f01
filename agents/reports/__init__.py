"""What people read of finished runs: tables, statistics, curves, galleries, one page of all."""
