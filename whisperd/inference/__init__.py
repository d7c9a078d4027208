"""Windows into text. All of it but `process`, the supervisor's side, runs in inference workers."""
