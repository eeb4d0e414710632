"""The theorems, in Coq, and what ties them to the rest. Imports no other room."""
