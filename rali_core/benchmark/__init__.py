"""Speed and memory, measured side by side on the machine at hand.

Every contender runs in a process of its own. All are loaded and warmed up first; then they take turns, round by round,
so that whatever else the machine does slows all alike. What counts are ratios within a round, and their medians.
"""
