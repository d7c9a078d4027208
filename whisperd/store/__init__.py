"""What the daemon remembers of finished requests, in one SQLite file with one writer."""
