//! Lists, page by page, as OpenAI's clients turn them.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::ApiError;

/// Which part of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// At most so many; how many there may be is said where there are more.
    #[param(minimum = 1)]
    limit: Option<usize>,
    /// The newest first, unless this is `asc`.
    #[param(inline)]
    order: Option<Order>,
    /// Only those after the one with this id.
    after: Option<String>,
}

/// Which comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// The oldest.
    Asc,
    /// The newest.
    Desc,
}

/// What a request's query says, or what is wrong with it in the words of all refusals.
pub(crate) fn in_words<T>(query: Result<Query<T>, QueryRejection>) -> Result<Query<T>, ApiError> {
    query.map_err(|error| ApiError::wrong(error.body_text()))
}

/// How long a page is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// Where it is not said.
    pub(crate) usual: usize,
    pub(crate) most: usize,
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl PageQuery {
    /// What a request says.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub(crate) fn of(
        query: Result<Query<PageQuery>, QueryRejection>,
    ) -> Result<PageQuery, ApiError> {
        let Query(query) = in_words(query)?;
        Ok(query)
    }

    /// The part of `oldest_first` that is asked for.
    ///
    /// # Errors
    /// For a length that is not allowed, and where `after` is none of them.
    pub(crate) fn cut<T>(
        &self,
        mut oldest_first: Vec<T>,
        lengths: Lengths,
        id: impl Fn(&T) -> &str,
    ) -> Result<Page<T>, ApiError> {
        let Lengths { usual, most } = lengths;
        let limit = self.limit.unwrap_or(usual);
        if !(1..=most).contains(&limit) {
            return Err(ApiError::field(
                "limit",
                format!("limit is {limit}, but must be from 1 to {most}"),
            ));
        }
        if self.order != Some(Order::Asc) {
            oldest_first.reverse();
        }
        let mut data = oldest_first;
        if let Some(after) = &self.after {
            let at = data.iter().position(|item| id(item) == after);
            let at = at
                .ok_or_else(|| ApiError::field("after", format!("{after:?} is not in the list")))?;
            data.drain(..=at);
        }
        let has_more = data.len() > limit;
        data.truncate(limit);
        let of = |item: Option<&T>| item.map(|item| id(item).to_owned());
        Ok(Page {
            object: "list",
            first_id: of(data.first()),
            last_id: of(data.last()),
            has_more,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another_and_hold_all() {
        let lengths = Lengths { usual: 3, most: 4 };
        let all: Vec<String> = (0..8).map(|at| format!("n{at}")).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let query = PageQuery {
                after: after.clone(),
                ..PageQuery::default()
            };
            let page = query.cut(all.clone(), lengths, |id| id).unwrap();
            assert_eq!(page.first_id.as_ref(), page.data.first());
            after = page.last_id;
            seen.extend(page.data);
            if !page.has_more {
                break;
            }
        }
        assert!(seen.iter().rev().eq(&all), "{seen:?}");
        let page = |limit, order, after: Option<&str>| {
            let query = PageQuery {
                limit,
                order,
                after: after.map(str::to_owned),
            };
            query.cut(all.clone(), lengths, |id| id)
        };
        assert_eq!(
            page(Some(2), Some(Order::Asc), Some("n0")).unwrap().data,
            ["n1", "n2"]
        );
        assert!(page(None, None, Some("n0")).unwrap().data.is_empty());
        for (limit, after, param) in [
            (Some(0), None, "limit"),
            (Some(5), None, "limit"),
            (None, Some("x"), "after"),
        ] {
            assert_eq!(
                page(limit, None, after).unwrap_err().param.as_deref(),
                Some(param)
            );
        }
    }
}
