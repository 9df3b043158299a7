"""How like real cells generated cells are, whoever generated them: `scdd.fidelity`."""
