"""Tables, pictures and pages made from what was measured."""
