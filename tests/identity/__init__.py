"""Who the client is, TLS and DSN, as real mail servers log them behind a running balancer."""
