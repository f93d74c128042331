"""State-space operators on tensors: floor 0 of the house. Imports torch and numpy, triton only when it is used."""
