"""State of the sweeps, cached in memory: snapshots of directories, fits, prices, and views as plain values."""
