"""When a test stops waiting, and when Ray does.

What hangs is found by it, and nothing else: a machine that does ten other things is slow, and no test may fail for it.
"""

HANG_SECONDS = 900.0
RAY_PATIENCE = {  # how long Ray waits for its own processes to start
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
}
