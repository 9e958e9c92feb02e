"""For tests, ours and yours: pico models, tolerances with their reasons, contract suites."""
