"""The parts of the run's loop: handing out work, waiting for groups, publishing, reporting, saving, interrupts."""
