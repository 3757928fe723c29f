(ns clojars.web
  "The pages."
  (:require [clojars.store :as store]
            [clojure.string :as str]
            [compojure.core :refer [GET routes]]
            [compojure.route :as route]
            [hiccup.core :refer [h]]
            [hiccup.page :refer [html5]]
            [ring.middleware.content-type :refer [wrap-content-type]]
            [ring.middleware.params :refer [wrap-params]]
            [ring.util.response :as response]))

(def ^:private most-found 100)

(defn- page
  [title & content]
  (-> (html5 [:head [:title (h title)]]
             [:body [:h1 (h title)] content])
      response/response
      (response/content-type "text/html; charset=utf-8")))

(defn- text
  [status line]
  (-> (response/response (str line "\n"))
      (response/status status)
      (response/content-type "text/plain; charset=utf-8")))

(defn- links
  [prefix paths]
  [:ul (for [path paths] [:li [:a {:href (str prefix path)} (h path)]])])

(defn- front
  [{:keys [store version release role]}]
  (page "Clojars"
        [:p "A repository of jars."]
        [:dl
         [:dt "version"] [:dd {:id "version"} (h version)]
         [:dt "release"] [:dd {:id "release"} (h release)]
         [:dt "role"] [:dd {:id "role"} (h role)]
         [:dt "files"] [:dd {:id "files"} (count (store/files store))]]
        [:form {:action "/search"} [:input {:name "q"}]]
        [:p [:a {:href "/repo/"} "all files"]]))

(defn- search
  [{:keys [store]} query]
  (let [words (remove str/blank? (str/split (str/lower-case (or query "")) #"\s+"))
        found (filter (fn [path] (every? #(str/includes? (str/lower-case path) %) words)) (store/files store))]
    (page (str "Search: " query)
          [:p {:id "found"} (count found)]
          (links "/repo/" (take most-found found)))))

(defn- repository
  "A file, or the list of what is in a directory."
  [{:keys [store]} text]
  (let [path (store/segments text)]
    (cond
      (nil? path) nil
      (store/file store path) (response/file-response (str (store/file store path)))
      (not (store/directory? store path)) nil
      (or (= "" text) (str/ends-with? text "/")) (page (str "/" text) (links "" (store/entries store path)))
      :else (response/redirect (str "/repo/" text "/")))))

(defn- health
  "200 while uploads are taken as well: a monitor needs no look at the other port."
  [{:keys [version takes-uploads?]}]
  (if (takes-uploads?)
    (text 200 version)
    (text 503 "uploads are not taken")))

(defn handler
  "All pages.

  site: :store; :version, :release and :role, texts; :takes-uploads?, a function."
  [site]
  (-> (routes
       (GET "/" [] (front site))
       (GET "/health" [] (health site))
       (GET "/version" [] (text 200 (:version site)))
       (GET "/search" [q] (search site q))
       (GET "/repo" [] (response/redirect "/repo/"))
       (GET ["/repo/:path" :path #".*"] [path] (repository site path))
       (route/not-found "not found\n"))
      wrap-params
      wrap-content-type))
