"""The shares of an average: schedules that give them, and numbers that describe them. Pure float64 maths."""
