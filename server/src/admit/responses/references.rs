//! Items that are sent by their ids: those of responses that are kept.
//!
//! Law: a turn is read once a request, however many of its items are meant; for that, no item may be taken twice.

use std::collections::HashMap;
use std::time::Instant;

use crate::error::ApiError;
use crate::responses::items::Item;
use crate::responses::store::Turn;
use crate::settings::{Caller, UnknownFields};
use crate::state::State;

/// What a request may refer to.
pub(super) struct References<'a> {
    state: &'a State,
    caller: Caller,
    /// Items of the turns that were read and not taken.
    found: HashMap<String, Item>,
}

impl<'a> References<'a> {
    /// Responses of this caller.
    pub(super) fn new(state: &'a State, caller: Caller) -> Self {
        Self { state, caller, found: HashMap::new() }
    }

    /// What is done with unknown fields.
    pub(super) fn policy(&self) -> UnknownFields {
        self.state.settings().unknown_fields
    }

    /// The item with this id.
    pub(super) fn take(&mut self, id: &str) -> Result<Item, ApiError> {
        if !self.found.contains_key(id)
            && let Some(turn) = self.state.responses().turn_of(self.caller.domain, id, Instant::now())
        {
            self.found.extend(items_of(&turn)?.into_iter().map(|item| (item.id().to_owned(), item)));
        }
        self.found.remove(id).ok_or_else(|| ApiError::item_not_found(id))
    }
}

/// The items of a turn that is kept.
pub(super) fn items_of(turn: &Turn) -> Result<Vec<Item>, ApiError> {
    turn.items().map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "a stored turn is not what was stored");
        ApiError::internal("A response that is kept could not be read")
    })
}
