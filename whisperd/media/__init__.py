"""Untrusted bytes into samples and windows. All of it but `pool`, the supervisor's side, runs in media workers."""
