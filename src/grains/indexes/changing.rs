//! What a change leaves of the indexes: what they take now, and after a panic in the middle of it none that is believed.

use std::ops::{Deref, DerefMut};

use parking_lot::RwLockWriteGuard;

use super::All;

/// All indexes while they change. After a panic nobody knows what they lack: all of them are broken.
pub(super) struct Changing<'a>(pub(super) RwLockWriteGuard<'a, All>);

impl Deref for Changing<'_> {
    type Target = All;

    fn deref(&self) -> &All {
        &self.0
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut All {
        &mut self.0
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "a change of it was cut off by a panic";
            for index in &mut self.0.in_order {
                index.break_as(reason.to_owned(), reason);
            }
        }
        self.0.note_taken();
    }
}
