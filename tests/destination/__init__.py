"""The destination: how changes pass the gate, whatever arrives and whatever fails."""
