"""Callbacks for trainers; thin, and imported only when they are used."""
