"""The machine under the agent: processes, cgroups, probes, files."""
