"""Ray and the machines: a session, the room on the nodes, independent tasks."""
