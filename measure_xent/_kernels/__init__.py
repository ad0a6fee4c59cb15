"""Arrays in, arrays out: no measure is known here."""
