"""What the suite is worth: faults found, false alarms, sensitivity, worst cases, claims.

May import gate and whatever gate may.
"""
