"""Simulated atlases, fitted to a real one."""
