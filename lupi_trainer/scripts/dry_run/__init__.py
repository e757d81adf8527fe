"""What would stop a run, found before it begins: from files alone, and then with everything short of a step.

`look` and what it imports load nothing heavy, so that it is said within seconds; `check` needs the whole of it.
"""
