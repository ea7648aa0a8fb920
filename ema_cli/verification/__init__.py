"""Check written averages against their reports and inputs."""
