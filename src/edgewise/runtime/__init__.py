"""Time, chance, retries and shutdown. The only place that reads a clock or draws a number."""
