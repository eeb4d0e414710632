"""The suite, in rooms of one subject each. Arrows run one way, to the right:

score → power, certify → gate → growers → laws → errors → growproof; proofs stand by themselves.
"""
