"""Public fakes: clock, chance, machine and network, for our tests and for yours."""
