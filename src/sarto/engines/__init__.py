"""Who proposes plans. Engines know the rooms below them and never each other; none of them assembles."""
