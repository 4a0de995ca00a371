"""The models of proofs/, gone through completely, and tied to the code."""
