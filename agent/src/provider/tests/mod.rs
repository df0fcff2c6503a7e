//! Providers against fakes of their services on loopback.
