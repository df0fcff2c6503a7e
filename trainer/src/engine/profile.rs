//! Where the time of a step goes, room by room: filled by an engine, shown by `trainer bench`.

use std::time::Duration;

/// Time spent in each room, in the order of their first use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    pub rooms: Vec<RoomTime>,
}

/// What one room did.
#[derive(Clone, Debug, PartialEq)]
pub struct RoomTime {
    pub room: &'static str,
    pub time: Duration,
    /// Floating-point operations of its matrix products.
    pub flops: f64,
    /// Bytes that it has to move at least, were nothing in a cache.
    pub bytes: f64,
}

impl Profile {
    /// Adds one operation.
    pub fn add(&mut self, room: &'static str, time: Duration, flops: f64, bytes: f64) {
        match self.rooms.iter_mut().find(|other| other.room == room) {
            Some(other) => {
                other.time += time;
                other.flops += flops;
                other.bytes += bytes;
            }
            None => self.rooms.push(RoomTime {
                room,
                time,
                flops,
                bytes,
            }),
        }
    }

    /// Time in all rooms together.
    pub fn total(&self) -> Duration {
        self.rooms.iter().map(|room| room.time).sum()
    }
}
