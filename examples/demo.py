"""One request to a real daemon over stdin and stdout, with the lines that go each way. Run by `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CLIP = Path(__file__).resolve().parent / "hello.flac"


def main() -> int:
    """Returns 0 when the daemon heard what the clip says."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "transcribe", "params": {"audio": {"path": str(CLIP)}}}
    line = json.dumps(request)
    print(f"request  {line}\n", flush=True)
    with tempfile.TemporaryDirectory() as state:  # the demo leaves nothing behind
        daemon = subprocess.run(
            [sys.executable, "-m", "whisperd", "serve", "--stdio", "--store", f"{state}/whisperd.db"],
            input=line + "\n",
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    print(f"\nreply    {daemon.stdout}")
    reply = json.loads(daemon.stdout)
    if "error" in reply:
        print(f"that failed: {reply['error']['message']}", file=sys.stderr)
        return 1
    timing = reply["result"]["timing"]
    print(f'It heard: "{reply["result"]["text"]}"')
    print(f"{reply['result']['duration_s']} s of audio; {timing['infer_ms']:.0f} ms of inference.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
