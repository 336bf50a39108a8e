"""The paper's claims, tables and figures beside what was run here."""
