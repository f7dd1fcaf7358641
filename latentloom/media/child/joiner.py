class Joiner: pass
