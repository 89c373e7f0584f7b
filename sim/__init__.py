"""The simulation: the real cores with one clock, one event heap and one seed."""
